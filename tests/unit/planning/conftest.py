"""Property tests here have no deadline: the time that an example takes says something about the machine alone."""

from hypothesis import settings

settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")
