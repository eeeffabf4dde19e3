"""What several tests build on: records, worlds, processes; no test stands here."""
