"""What an operator should know without looking: decided by rules, told once by one worker.

Not a monitoring system: who watches that workers live at all is Prometheus, or a dead-man ping.
"""
