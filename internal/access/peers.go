package access

import (
	"net/netip"
	"slices"
	"time"
)

const (
	mostWrong   = 20              // wrong tokens in a row that an address may offer
	forgiveEach = 3 * time.Second // one of them
	mostKnown   = 8               // tokens that go on to work from an address that has guessed too often
	mostPeers   = 10_000
)

// peers are the addresses that offered tokens. Where many share one, as behind a proxy, those whose tokens worked before go on.
type peers map[netip.Prefix]*peer

type peer struct {
	wrong float64
	at    time.Time
	known []digest
}

func (p peers) of(address string, now time.Time) *peer {
	key := network(address)
	it, ok := p[key]
	if !ok {
		if len(p) >= mostPeers {
			clear(p)
		}
		it = &peer{at: now}
		p[key] = it
	}
	it.wrong = max(0, it.wrong-now.Sub(it.at).Seconds()/forgiveEach.Seconds())
	it.at = now
	return it
}

// network is what one guesser has: an IPv4 address, or 64 bits of IPv6. What is no address shares one.
func network(address string) netip.Prefix {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return netip.Prefix{}
	}
	ip, bits := a.Addr().Unmap().WithZone(""), 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits) // which fits
	return p
}

func (p *peer) exhausted() bool { return p.wrong > mostWrong-1 } // some of the last one is forgiven by now

func (p *peer) knows(d digest) bool { return slices.Contains(p.known, d) }

func (p *peer) remember(d digest) {
	if !p.knows(d) {
		p.known = append(p.known, d)
		p.known = p.known[max(0, len(p.known)-mostKnown):]
	}
}
