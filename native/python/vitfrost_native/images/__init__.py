"""How pictures are read: vitfrost's own files, so that both read them bit for bit alike."""
