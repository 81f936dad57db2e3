"""Private names of torch and TorchTitan, one file per concern, each with the versions it was read in.

Nothing outside this folder may touch a name with a leading underscore of either.
"""
