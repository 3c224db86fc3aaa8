//! The names of everything this crate keeps in Redis. Keys that one script touches share a hash tag, so that the
//! same scripts run on a Redis Cluster.

/// Builds Redis keys under one prefix; each test and each cluster takes its own.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// Takes a prefix such as `cp`; with an empty one the keys are bare.
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: if prefix.is_empty() {
                String::new()
            } else {
                format!("{prefix}:")
            },
        }
    }

    /// Puts the prefix before any other key, for callers with keys of their own.
    pub fn key(&self, rest: &str) -> String {
        format!("{}{rest}", self.prefix)
    }

    /// The lease of a name; its value is the owner.
    pub fn lease(&self, name: &str) -> String {
        self.key(&format!("lease:{{{name}}}"))
    }

    /// The counter from which the fencing tokens of a lease are taken.
    pub fn lease_token(&self, name: &str) -> String {
        self.key(&format!("lease:{{{name}}}:token"))
    }

    /// Says that an owner is gone, whose request for a lease may still be on its way.
    pub fn lease_farewell(&self, name: &str, owner: &str) -> String {
        self.key(&format!("lease:{{{name}}}:gone:{owner}"))
    }

    /// What all port keys of a node begin with; `adb:5555` behind it is the lease of that port.
    pub fn ports(&self, node: &str) -> String {
        self.key(&format!("port:{{{node}}}:"))
    }

    /// The marker that says that the index of a node's free ports exists for a layout; the keys of the index begin with it.
    pub fn port_index(&self, node: &str, layout: &str) -> String {
        self.key(&format!("port:{{{node}}}:index:{layout}"))
    }

    /// The Redlock of a cron job.
    pub fn cron(&self, job: &str) -> String {
        self.key(&format!("cron:{job}"))
    }

    /// What all slot keys of the registry begin with; `users:0` behind it is the first slot of that service.
    pub fn slots(&self) -> String {
        self.key("{registry}:slot:")
    }

    /// The hash that holds one entry for each occupied slot.
    pub fn registry(&self) -> String {
        self.key("{registry}:entries")
    }

    /// The random value that changes when Redis has lost the registry.
    pub fn registry_epoch(&self) -> String {
        self.key("{registry}:epoch")
    }

    /// The channel that says that the registry has changed.
    pub fn registry_news(&self) -> String {
        self.key("{registry}:news")
    }

    /// The channel that names sessions which have ended.
    pub fn session_news(&self) -> String {
        self.key("{sessions}:ended")
    }

    /// The state of a rate limit.
    pub fn rate(&self, key: &str) -> String {
        self.key(&format!("rate:{{{key}}}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_named_as_in_the_seed_with_the_node_as_hash_tag() {
        let keys = Keys::new("");

        assert_eq!(keys.ports("node-1") + "adb:5555", "port:{node-1}:adb:5555");
        assert_eq!(keys.cron("expire-orders"), "cron:expire-orders");
        assert_eq!(Keys::new("t1").lease("a"), "t1:lease:{a}");
    }
}
