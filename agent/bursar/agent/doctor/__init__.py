"""`bursar-agent doctor`: everything that an operator must have right, looked at, judged and explained. It changes nothing."""
