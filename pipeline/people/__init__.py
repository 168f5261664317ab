"""Who is on the photos: compare and search the faces of finished outputs. It writes no rows."""
