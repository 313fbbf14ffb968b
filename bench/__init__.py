"""What things cost: a file for each verb of `mgpt bench`."""
