"""What all tests share."""

from hypothesis import Phase, settings

# A mutant's test need only turn red: a minimal example takes minutes to find and nobody reads it.
settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate), derandomize=True, deadline=None)
