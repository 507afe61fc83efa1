"""Teachers behind policy servers, and ours as servers: openpi's WebSocket from both ends, GR00T's ZeroMQ as its client.

May import the ground (errors, action_convention), teachers and robot_state. Nothing here unpickles.
"""
