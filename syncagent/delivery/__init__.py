"""The agent's thread: takes the records of all threads and hands whole events to the sinks."""
