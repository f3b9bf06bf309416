"""Images that another system made of the prompts."""
