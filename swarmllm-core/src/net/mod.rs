//! (to be written; the contract is in net/mod.rs of the plan)
