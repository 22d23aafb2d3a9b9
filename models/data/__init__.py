"""Images by index: photographs, folders."""
