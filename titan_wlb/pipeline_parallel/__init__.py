"""Pipeline parallelism over micro-batches of different lengths, with torch's schedules as they are."""
