pub(crate) mod wire;
pub(crate) mod world;
