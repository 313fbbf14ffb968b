"""What comes out: events, pictures, and the note in their files."""
