"""What several articles need: boxes, suppression, records, training plumbing, metrics, export, drawing."""
