//! Those who have not proved the secret: whose connection is closed for a newer one, and what the log says of them.
//!
//! A newcomer is never refused for want of room: the oldest connection of the group that has most of them goes.
//! So a group can displace others only while it has fewer connections than they have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pgpool_recovery_core::sys::addresses;
use pgpool_recovery_core::sys::lock::lock;
use tracing::warn;

/// Connections of one group that are logged one by one in a minute; more are counted.
const LINES_OF_ONE: u32 = 5;

/// Connections of all groups that are logged one by one in a minute.
const LINES: u32 = 30;

const MINUTE: Duration = Duration::from_secs(60);

/// Addresses that are taken for one peer, because one peer can have all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Group {
    /// Loopback and this host's own addresses: every local user has them.
    ThisHost,
    /// One IPv4 address; without `host` its /24.
    V4 { network: [u8; 3], host: Option<u8> },
    /// A /64 of IPv6, which one host can have to itself; without `subnet` its /48.
    V6 { site: [u16; 3], subnet: Option<u16> },
}

impl Group {
    /// The group of a peer's address. `own` are the addresses of this host.
    pub(crate) fn of(address: IpAddr, own: &[IpAddr]) -> Self {
        let address = address.to_canonical();
        if address.is_loopback() || own.contains(&address) {
            return Self::ThisHost;
        }
        match address {
            IpAddr::V4(address) => {
                let [a, b, c, host] = address.octets();
                Self::V4 { network: [a, b, c], host: Some(host) }
            }
            IpAddr::V6(address) => {
                let [a, b, c, subnet, ..] = address.segments();
                Self::V6 { site: [a, b, c], subnet: Some(subnet) }
            }
        }
    }

    /// The network it belongs to: someone may have all of that, too.
    const fn network(self) -> Self {
        match self {
            Self::ThisHost => Self::ThisHost,
            Self::V4 { network, .. } => Self::V4 { network, host: None },
            Self::V6 { site, .. } => Self::V6 { site, subnet: None },
        }
    }
}

/// This host's addresses, looked up now and then: they come and go.
pub(crate) struct OwnAddresses {
    known: Vec<IpAddr>,
    asked: Option<Instant>,
}

impl OwnAddresses {
    /// How long the list is good for.
    const GOOD: Duration = Duration::from_secs(10);

    pub(crate) const fn new() -> Self {
        Self { known: Vec::new(), asked: None }
    }

    /// The group of a peer's address.
    pub(crate) fn group(&mut self, address: IpAddr) -> Group {
        let group = Group::of(address, &self.known);
        if group == Group::ThisHost || self.asked.is_some_and(|asked| asked.elapsed() < Self::GOOD) {
            return group;
        }
        self.asked = Some(Instant::now());
        // without a list, loopback is still known
        if let Ok(own) = addresses::own_addresses() {
            self.known = own.iter().map(IpAddr::to_canonical).collect();
        }
        Group::of(address, &self.known)
    }
}

/// What is kept for each connection of some strangers, with the order in which they came.
pub(crate) struct Pool<T> {
    guests: BTreeMap<u64, (Group, T)>,
    networks: HashMap<Group, Network>,
}

/// The connections of a network, by number.
#[derive(Default)]
struct Network {
    all: BTreeSet<u64>,
    groups: HashMap<Group, BTreeSet<u64>>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { guests: BTreeMap::new(), networks: HashMap::new() }
    }
}

impl<T> Pool<T> {
    pub(crate) fn len(&self) -> usize {
        self.guests.len()
    }

    /// Adds a connection. Numbers grow.
    pub(crate) fn insert(&mut self, number: u64, group: Group, guest: T) {
        self.guests.insert(number, (group, guest));
        let network = self.networks.entry(group.network()).or_default();
        network.all.insert(number);
        network.groups.entry(group).or_default().insert(number);
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        self.guests.get_mut(&number).map(|(_, guest)| guest)
    }

    /// The oldest connection.
    pub(crate) fn first(&self) -> Option<(u64, &T)> {
        self.guests.first_key_value().map(|(&number, (_, guest))| (number, guest))
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        let (group, guest) = self.guests.remove(&number)?;
        if let Some(network) = self.networks.get_mut(&group.network()) {
            network.all.remove(&number);
            if let Some(numbers) = network.groups.get_mut(&group) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    network.groups.remove(&group);
                }
            }
            if network.all.is_empty() {
                self.networks.remove(&group.network());
            }
        }
        Some(guest)
    }

    /// Takes out the oldest connection of the fullest group of the fullest network; among equals, the oldest of all.
    pub(crate) fn displace(&mut self) -> Option<T> {
        let network = fullest(self.networks.values(), |network| &network.all)?;
        let oldest = *fullest(network.groups.values(), |numbers| numbers)?.first()?;
        self.remove(oldest)
    }
}

/// The one with most numbers, among equals the one with the lowest.
fn fullest<'a, N>(
    some: impl Iterator<Item = &'a N>,
    numbers: impl Fn(&'a N) -> &'a BTreeSet<u64>,
) -> Option<&'a N> {
    some.max_by_key(|one| (numbers(one).len(), std::cmp::Reverse(numbers(one).first())))
}

/// What the log says of those who were turned away: someone who knocks all day must not fill a disk.
#[derive(Default)]
pub(crate) struct Refusals {
    minute: Mutex<Minute>,
    count: AtomicU64,
}

#[derive(Default)]
struct Minute {
    began: Option<Instant>,
    lines: HashMap<Group, u32>,
    told: u32,
    silent: u64,
}

impl Refusals {
    /// How many there have been.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts one, and logs it if its group has not had its share of this minute's lines.
    pub(crate) fn tell(&self, group: Group, what: std::fmt::Arguments<'_>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if self.has_line(group, Instant::now()) {
            warn!("{what}");
        }
    }

    /// Logs how many have not been logged, when their minute is over.
    pub(crate) fn sum_up(&self) {
        if let Some(silent) = self.silent(Instant::now()) {
            warn!("{silent} more connections were refused or closed within a minute");
        }
    }

    fn has_line(&self, group: Group, now: Instant) -> bool {
        self.sum_up();
        let mut minute = lock(&self.minute);
        minute.began.get_or_insert(now);
        let Minute { lines, told, silent, .. } = &mut *minute;
        let own = lines.get(&group).copied().unwrap_or_default();
        let has_line = *told < LINES && own < LINES_OF_ONE;
        if has_line {
            *told += 1;
            lines.insert(group, own + 1);
        } else {
            *silent += 1;
        }
        has_line
    }

    /// The number of those who were not logged in a minute that is over.
    fn silent(&self, now: Instant) -> Option<u64> {
        let mut minute = lock(&self.minute);
        minute.began.filter(|&began| now.saturating_duration_since(began) >= MINUTE)?;
        let silent = std::mem::take(&mut *minute).silent;
        (silent > 0).then_some(silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(address: &str) -> Group {
        let own = ["192.0.2.7".parse().expect("an address"), "2001:db8::7".parse().expect("an address")];
        Group::of(address.parse().expect("an address"), &own)
    }

    #[test]
    fn addresses_that_one_peer_can_have_are_one_group() {
        for here in [
            "127.0.0.1",
            "127.9.8.7",
            "::1",
            "::ffff:127.0.0.2",
            "192.0.2.7",
            "::ffff:192.0.2.7",
            "2001:db8::7",
        ] {
            assert_eq!(group(here), Group::ThisHost, "{here}");
        }
        assert_eq!(group("2001:db8:1:2::3"), group("2001:db8:1:2:ffff::9"));
        assert_ne!(group("2001:db8:1:2::3"), group("2001:db8:1:3::3"));
        assert_eq!(group("2001:db8:1:2::3").network(), group("2001:db8:1:3::3").network());
        assert_eq!(group("::ffff:198.51.100.1"), group("198.51.100.1"));
        assert_ne!(group("198.51.100.1"), group("198.51.100.2"));
        assert_eq!(group("198.51.100.1").network(), group("198.51.100.2").network());
        assert_ne!(group("198.51.100.1").network(), group("198.51.101.1").network());
    }

    #[test]
    fn this_hosts_addresses_are_looked_up() {
        let mut own = OwnAddresses::new();
        assert_eq!(own.group([127, 0, 0, 1].into()), Group::ThisHost);
        assert!(own.asked.is_none(), "loopback needs no list");
        for address in addresses::own_addresses().expect("interfaces") {
            assert_eq!(own.group(address), Group::ThisHost);
        }
        assert_ne!(own.group([192, 0, 2, 1].into()), Group::ThisHost);
    }

    fn pool(addresses: &[&str]) -> Pool<String> {
        let mut pool = Pool::default();
        for (number, address) in (0..).zip(addresses) {
            pool.insert(number, group(address), format!("{number}"));
        }
        pool
    }

    fn displaced(mut pool: Pool<String>) -> Vec<String> {
        std::iter::from_fn(|| pool.displace()).collect()
    }

    #[test]
    fn the_oldest_of_the_fullest_group_goes_first() {
        let order = displaced(pool(&["198.51.100.1", "127.0.0.1", "127.0.0.2", "::1", "203.0.113.1"]));
        // one is left of each: the oldest of all
        assert_eq!(order, ["1", "2", "0", "3", "4"]);
    }

    #[test]
    fn many_addresses_of_one_network_do_not_displace_another_network() {
        // ten hosts of a /24 with one each, against two of one host elsewhere, which came first
        let mut addresses = vec!["203.0.113.1".to_owned(); 2];
        addresses.extend((1..=10).map(|host| format!("198.51.100.{host}")));
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        assert_eq!(displaced(pool(&addresses))[..8], ["2", "3", "4", "5", "6", "7", "8", "9"]);
        // the network's one host with many of them goes before its neighbours
        assert_eq!(displaced(pool(&["198.51.100.9", "198.51.100.1", "198.51.100.1", "127.0.0.1"]))[0], "1");
    }

    #[test]
    fn what_leaves_is_no_longer_counted() {
        let mut pool = pool(&["127.0.0.1", "127.0.0.1", "127.0.0.1", "198.51.100.1", "198.51.100.1"]);
        for number in [0, 1] {
            assert_eq!(pool.remove(number), Some(number.to_string()));
        }
        assert_eq!(pool.remove(0), None);
        assert_eq!((pool.len(), pool.first().map(|(number, _)| number)), (3, Some(2)));
        assert_eq!(pool.get_mut(2).map(|guest| guest.as_str()), Some("2"));
        assert_eq!(displaced(pool), ["3", "2", "4"]);
        let mut empty = Pool::<String>::default();
        assert_eq!(empty.displace(), None);
    }

    #[test]
    fn a_flood_has_few_lines_and_the_others_have_theirs() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let lines = |group, now| (0..1000).filter(|_| refusals.has_line(group, now)).count();
        assert_eq!(lines(Group::ThisHost, start), 5);
        assert_eq!(lines(group("198.51.100.1"), start), 5, "another group is not silenced by it");
        let many: usize = (0..=255).map(|host| lines(group(&format!("203.0.113.{host}")), start)).sum();
        assert_eq!(many, 20, "all groups together");
        assert_eq!(refusals.silent(start + Duration::from_secs(59)), None);
        let after = start + MINUTE;
        assert_eq!(refusals.silent(after), Some(258_000 - 30));
        assert_eq!(refusals.silent(after), None, "told once");
        assert_eq!(lines(Group::ThisHost, after), 5, "a new minute");
    }
}
