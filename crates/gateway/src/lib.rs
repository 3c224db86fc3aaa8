//! The parts of the gateway that tests drive without a process: the front door.

pub mod front;
