"""Questions that Python answers, made from the running installation."""
