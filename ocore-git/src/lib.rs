//! The Source of ocore over git2.
