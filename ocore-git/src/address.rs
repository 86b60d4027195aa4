//! Which addresses a host has, and which of them may be connected to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ocore_core::port::{Classify, Error, Result};

use crate::policy::{Addresses, SourcePolicy};

/// The addresses of a host that the policy allows; at least one.
pub(crate) async fn resolve(host: &str, port: u16, policy: &SourcePolicy) -> Result<Vec<SocketAddr>> {
    let found = lookup(host, port, policy).await?;
    let allowed: Vec<_> = found.iter().copied().filter(|address| is_allowed(address.ip(), policy)).collect();
    match found.first() {
        None => Err(Error::permanent(format!("find the host {host}: no such host"))),
        Some(first) if allowed.is_empty() => {
            let address = first.ip();
            Err(Error::permanent(format!(
                "connect to {host}: its address {address} is not allowed by the policy of this Source"
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
        // The resolver's reason has no kind of its own in the standard library: only its text tells.
        Err(error) if error.to_string().contains("Temporary failure") => {
            Err(error).transient(format!("find the host {host}"))
        }
        Err(error) => Err(error).permanent(format!("find the host {host}: no such host")),
    }
}

fn is_allowed(address: IpAddr, policy: &SourcePolicy) -> bool {
    let address = embedded(address);
    if policy.allowed_addresses.contains(&address) {
        return true;
    }
    match policy.addresses {
        Addresses::NotLinkLocal => !is_link_local(address),
        Addresses::Public => !is_link_local(address) && is_public(address),
    }
}

/// The IPv4 address in an IPv6 address that is only another way of writing it, or of reaching it.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let last = |octets: [u8; 16]| Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]).into();
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => last(v6.octets()),
        [0, 0, 0, 0, 0, 0, high, low] if (high, low) > (0, 1) => last(v6.octets()),
        [0x2002, high, low, ..] => Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)).into(),
        _ => address,
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
            let site_local = v6.segments()[0] & 0xffc0 == 0xfec0;
            !(v6.is_loopback() || v6.is_unique_local() || site_local)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, not_link_local: bool, public: bool) {
        let ip: IpAddr = address.parse().unwrap();
        let policy = SourcePolicy::default();
        assert_eq!(is_allowed(ip, &policy), not_link_local, "{address}");
        assert_eq!(is_allowed(ip, &policy.addresses(Addresses::Public)), public, "{address} as public");
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
    }

    #[test]
    fn an_allowed_address_is_allowed() {
        let address: IpAddr = "10.0.0.7".parse().unwrap();
        let policy = SourcePolicy::default().addresses(Addresses::Public).allow_address(address);
        assert!(is_allowed(address, &policy));
        assert!(!is_allowed("10.0.0.8".parse().unwrap(), &policy));
    }

    #[tokio::test]
    async fn a_name_that_leads_to_metadata_is_refused() {
        let policy = SourcePolicy::default().host_address("git.test", "169.254.169.254".parse().unwrap());
        let error = resolve("git.test", 443, &policy).await.unwrap_err().to_string();
        assert!(error.contains("169.254.169.254 is not allowed"), "{error}");
    }
}
