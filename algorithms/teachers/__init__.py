"""Teachers: networks that are trained once, on images of all kinds, for all categories."""
