//! The fleet as a plan sees it: what is there, what is promised to VMs that are on their way, and how hosts reach each
//! other.

use model::host::{Host, Needs, Vm};
use model::link::{Price, Standing};
use model::route::{Order, Route};
use model::{Name, Timestamp};

/// A host.
#[derive(Clone, PartialEq, Debug)]
pub struct Place {
    /// What is known of it.
    pub host: Host,
    /// Its agent has a line to the coordinator.
    pub connected: bool,
    /// It is to take no VMs.
    pub cordoned: bool,
    /// What VMs on their way to it need, and which those are.
    pub arriving: Vec<(String, Needs)>,
}

/// The fleet.
#[derive(Clone, PartialEq, Debug)]
pub struct Fleet {
    /// When this was so.
    pub now: Timestamp,
    /// Its hosts.
    pub places: Vec<Place>,
    /// Its links.
    pub links: Vec<Standing>,
}

/// A way from one host to another.
#[derive(Clone, PartialEq, Debug)]
pub struct Way {
    /// Its link; none for the hosts' own addresses without a declared one.
    pub link: Option<Name>,
    /// What a migration may use of it, bytes a second, and whether that was measured.
    pub rate: Option<(u64, bool)>,
    /// Round trip, microseconds.
    pub rtt_us: Option<u64>,
    /// What it costs.
    pub price: Price,
    /// Migrations that may use it at once.
    pub most: Option<u32>,
}

impl Place {
    /// A VM of it by id.
    #[must_use]
    pub fn vm(&self, id: &str) -> Option<&Vm> {
        self.host.observed.as_ref()?.vms.iter().find(|vm| vm.id == id)
    }
}

impl Fleet {
    /// A host by its name.
    #[must_use]
    pub fn place(&self, name: &Name) -> Option<&Place> {
        self.places.iter().find(|place| place.host.name == *name)
    }

    /// The ways from one host to another, best first. With links of the two sites, only those that can be used now;
    /// without any, the destination's own address.
    #[must_use]
    pub fn ways(&self, source: &Host, destination: &Host, order: Order) -> Vec<Way> {
        let routes = model::route::routes_by(source, destination, &self.links, order, self.now);
        let mut ways: Vec<Way> = Vec::new();
        for Route { link, .. } in routes {
            // Several addresses on one link are one way.
            if ways.iter().any(|way| way.link == link) {
                continue;
            }
            let standing =
                link.as_ref().and_then(|name| self.links.iter().find(|one| one.link.name == *name));
            ways.push(standing.map_or_else(direct, way));
        }
        ways
    }
}

fn direct() -> Way {
    Way { link: None, rate: None, rtt_us: None, price: Price::default(), most: None }
}

/// What can be expected of a link: what was measured, within what operators allow.
fn way(standing: &Standing) -> Way {
    let link = &standing.link;
    let tried = standing.measured.is_some_and(|measured| measured.rate.is_some());
    Way {
        link: Some(link.name.clone()),
        rate: standing.rate().map(|rate| (rate, tried)),
        rtt_us: standing.measured.map(|measured| measured.rtt_us),
        price: link.price.clone(),
        most: link.most_migrations,
    }
}
