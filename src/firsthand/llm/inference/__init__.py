"""A trained model at work: INT8 on a CPU, many texts at once, and a server with OpenAI's API.

Read in this order: errors, engine, torch_engine, cpu_engine, choosing, scheduler, decoding,
opening, metrics, service, server.
"""
