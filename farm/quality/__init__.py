"""Scores, stopping, studies and the report: did each subject learn, and did the class survive."""
