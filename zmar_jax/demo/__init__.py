"""A web page to try the model on: pictures, jobs and weights of a session, and the server.

Imports: data, imaging, restore, runtime, torch_port, weights.
"""
