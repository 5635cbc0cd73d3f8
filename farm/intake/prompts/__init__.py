"""Checks of prompts and captions: do they name the subject, and do they fit the text encoder?"""
