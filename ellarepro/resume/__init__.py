"""What a run keeps so that it can be stopped and continued."""
