"""What the commands that write HTML pages share: the template, the look, and pictures of photos and faces."""
