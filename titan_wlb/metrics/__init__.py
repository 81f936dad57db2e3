"""What happens to a step's times: gathered over the ranks, written, summed up, shown at the end of the run."""
