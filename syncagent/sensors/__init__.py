"""The only rooms where torch's private parts are touched: each sensor notices that a thread waits for the GPU."""
