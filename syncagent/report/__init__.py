"""What a person reads: the model of a report and its renderings."""
