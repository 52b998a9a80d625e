"""OpenAI's HTTP interface over a service.

Read in this order: settings, errors, guard, schemas, logprobs, answers, completions, chat, app.
"""
