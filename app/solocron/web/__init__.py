"""The aiohttp side: WebSocket, REST, probes, and who may do what.

Not a framework: handlers translate between HTTP and the parts below, and decide nothing else.
"""
