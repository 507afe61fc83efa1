"""Teachers behind policy servers, and ours as servers: openpi's WebSocket protocol, from both of its ends.

May import the ground (errors, action_convention) and teachers. Nothing here unpickles.
"""
