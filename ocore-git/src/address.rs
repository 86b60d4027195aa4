//! Which addresses a host has, and which of them may be connected to.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ocore_core::port::{Classify, Error, Result};

use crate::policy::{Addresses, SourcePolicy};

/// The addresses of a host that the policy allows; at least one.
pub(crate) async fn resolve(
    host: &str,
    port: u16,
    addresses: Addresses,
    policy: &SourcePolicy,
) -> Result<Vec<SocketAddr>> {
    let found = lookup(host, port, policy).await?;
    let is_allowed = |address: &&SocketAddr| is_allowed(address.ip(), addresses, policy);
    let allowed: Vec<_> = found.iter().filter(is_allowed).copied().collect();
    match found.first() {
        None => Err(Error::permanent(format!("find the host {host}: no such host"))),
        Some(first) if allowed.is_empty() => {
            let address = first.ip();
            Err(Error::permanent(format!(
                "connect to {host}: its address {address} is not allowed by the policy of this Source, for itself or \
                 for a submodule; see SourcePolicy::allow_address"
            )))
        }
        Some(_) => Ok(allowed),
    }
}

async fn lookup(host: &str, port: u16, policy: &SourcePolicy) -> Result<Vec<SocketAddr>> {
    let known = policy.host_addresses.get(host).copied().or_else(|| host.parse().ok());
    if let Some(address) = known {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    match tokio::net::lookup_host((host, port)).await {
        Ok(found) => Ok(found.collect()),
        Err(error) => Err(unknown(host, error)),
    }
}

/// What a failed look-up means. The resolver's reason has no kind of its own in the standard library: only its text
/// tells, and what is not known to be final may pass.
fn unknown(host: &str, error: io::Error) -> Error {
    const FINAL: [&str; 4] = [
        "Name or service not known",
        "No address associated with hostname",
        "nodename nor servname provided",
        "Name does not resolve",
    ];
    let text = error.to_string();
    let failed = Err::<Infallible, _>(error);
    let failed = if FINAL.iter().any(|reason| text.contains(reason)) {
        failed.permanent(format!("find the host {host}: no such host"))
    } else {
        failed.transient(format!("find the host {host}"))
    };
    match failed {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

/// Whether every address that this one leads to is allowed.
fn is_allowed(address: IpAddr, addresses: Addresses, policy: &SourcePolicy) -> bool {
    embedded(address).into_iter().all(|address| {
        policy.allowed_addresses.contains(&address)
            || match addresses {
                Addresses::NotLinkLocal => !is_link_local(address),
                Addresses::Public => !is_link_local(address) && is_public(address),
            }
    })
}

/// The address, or the IPv4 addresses in an IPv6 one that is only another way of writing or of reaching them.
fn embedded(address: IpAddr) -> Vec<IpAddr> {
    let IpAddr::V6(v6) = address else { return vec![address] };
    let octets = v6.octets();
    let at = |places: [usize; 4]| IpAddr::V4(Ipv4Addr::from(places.map(|place| octets[place])));
    let last = at([12, 13, 14, 15]);
    match v6.segments() {
        // Mapped, translated, and behind the well-known prefix of NAT64.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            vec![last]
        }
        [0, 0, 0, 0, 0, 0, high, low] if (high, low) > (0, 1) => vec![last],
        // A prefix of NAT64 of one's own: where the address stands depends on its length.
        [0x64, 0xff9b, 1, ..] => vec![at([6, 7, 9, 10]), at([9, 10, 11, 12]), last],
        [0x2002, ..] => vec![at([2, 3, 4, 5])],
        // Teredo: its server, and the client, inverted.
        [0x2001, 0, .., high, low] => {
            let client = !((u32::from(high) << 16) | u32::from(low));
            vec![at([4, 5, 6, 7]), IpAddr::V4(Ipv4Addr::from(client))]
        }
        _ => vec![address],
    }
}

/// Where no repository lives, but credentials of cloud machines do.
fn is_link_local(address: IpAddr) -> bool {
    const METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
    const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match address {
        IpAddr::V4(v4) => {
            v4.octets()[0] == 0
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || METADATA.contains(&v4)
        }
        IpAddr::V6(v6) => {
            v6.is_unspecified() || v6.is_unicast_link_local() || v6.is_multicast() || v6 == METADATA_V6
        }
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let carrier = a == 100 && (64..128).contains(&b);
            let special = (a, b, c) == (192, 0, 0) || (a == 198 && (b & 0xfe) == 18) || a >= 240;
            !(v4.is_loopback() || v4.is_private() || v4.is_documentation() || carrier || special)
        }
        IpAddr::V6(v6) => {
            let [first, second, ..] = v6.segments();
            first & 0xe000 == 0x2000 && (first, second) != (0x2001, 0xdb8)
        }
    }
}

#[cfg(test)]
mod tests {
    use ocore_core::port::ErrorKind;

    use super::*;

    fn check(address: &str, not_link_local: bool, public: bool) {
        let ip: IpAddr = address.parse().unwrap();
        let policy = SourcePolicy::default();
        assert_eq!(is_allowed(ip, Addresses::NotLinkLocal, &policy), not_link_local, "{address}");
        assert_eq!(is_allowed(ip, Addresses::Public, &policy), public, "{address} as public");
    }

    #[test]
    fn addresses_are_told_apart() {
        for address in ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1"] {
            check(address, true, true);
        }
        for address in ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "100.64.0.1", "::1", "fd12::1"]
        {
            check(address, true, false);
        }
        for address in ["::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::", "198.18.0.1"]
        {
            check(address, true, false);
        }
        for address in ["169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255", "fe80::1", "::"] {
            check(address, false, false);
        }
        for address in ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "fd00:ec2::254"] {
            check(address, false, false);
        }
        for address in [
            "::ffff:0:169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "64:ff9b:1:a9fe:a9:fe00::",
            "2001:0:4136:e378:8000:63bf:5601:5601",
            "2001:0:a9fe:a9fe:8000:63bf:fefe:fefe",
        ] {
            check(address, false, false);
        }
        for address in ["::ffff:0:10.0.0.1", "2001:0:4136:e378:8000:63bf:f5ff:fffe", "100::1", "2001:db8::1"]
        {
            check(address, true, false);
        }
    }

    #[test]
    fn an_allowed_address_is_allowed() {
        let address: IpAddr = "10.0.0.7".parse().unwrap();
        let policy = SourcePolicy::default().allow_address(address);
        assert!(is_allowed(address, Addresses::Public, &policy));
        assert!(!is_allowed("10.0.0.8".parse().unwrap(), Addresses::Public, &policy));
    }

    #[test]
    fn only_what_is_final_is_no_such_host() {
        let lookup = |reason: &str| {
            unknown("x.test", io::Error::other(format!("failed to lookup address information: {reason}")))
        };
        for reason in
            ["Name or service not known", "No address associated with hostname", "Name does not resolve"]
        {
            let error = lookup(reason);
            assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
            assert!(error.to_string().contains("find the host x.test: no such host"), "{error}");
        }
        for reason in
            ["Temporary failure in name resolution", "Try again", "System error", "Too many open files"]
        {
            let error = lookup(reason);
            assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
            assert!(!error.to_string().contains("no such host"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_to_metadata_is_refused() {
        let policy = SourcePolicy::default().host_address("git.test", "169.254.169.254".parse().unwrap());
        let error = resolve("git.test", 443, Addresses::NotLinkLocal, &policy).await.unwrap_err().to_string();
        assert!(error.contains("169.254.169.254 is not allowed"), "{error}");
    }
}
