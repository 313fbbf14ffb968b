"""The loop, and how its tokens get through the passes."""
