"""Clean samples: reading, templates, built-in prompts."""
