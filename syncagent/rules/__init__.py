"""Which calls wait for the GPU; read by the sensors and by the simulated device."""
