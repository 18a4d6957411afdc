"""The truth: tables, migrations and the run ledger, on SQLite or PostgreSQL.

Not an ORM: rows are plain, SQL is SQLAlchemy Core, and nobody above this package opens an engine.
"""
