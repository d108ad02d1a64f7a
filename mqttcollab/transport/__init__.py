"""How messages reach a broker: `mqtt` (paho on asyncio) and `memory` (for fast tests), behind `base`."""
