//! images_preload
