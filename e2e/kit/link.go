package kit

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/time/rate"
)

// Link is a slow line to a server: a TCP proxy.
type Link struct {
	// Address is where it listens.
	Address  string
	listener net.Listener
	ctx      context.Context //nolint:containedctx // that of its connections
	stop     context.CancelFunc
}

const (
	linkChunk = 32 << 10
	// linkQueue is how many chunks are on the way at once: what 20 ms of 1 GB/s hold.
	linkQueue = 640
)

// StartLink listens at a host. What passes takes half of rtt, and each way passes bytesPerSecond, all connections
// together.
func StartLink(host, server string, rtt time.Duration, bytesPerSecond int) (*Link, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, fmt.Errorf("listen for connections to %s: %w", server, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &Link{Address: listener.Addr().String(), listener: listener, ctx: ctx, stop: stop}
	limiter := func() *rate.Limiter { return rate.NewLimiter(rate.Limit(bytesPerSecond), 8*linkChunk) }
	up, down := limiter(), limiter()
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", server)
			if err != nil {
				_ = client.Close()
				continue
			}
			context.AfterFunc(ctx, func() { _, _ = client.Close(), server.Close() })
			go l.pass(server, client, rtt/2, up)
			go l.pass(client, server, rtt/2, down)
		}
	}()
	return l, nil
}

// Close ends the link and its connections.
func (l *Link) Close() error {
	l.stop()
	return l.listener.Close()
}

// pass moves what one side sends to the other, and then closes both.
func (l *Link) pass(to, from net.Conn, delay time.Duration, limiter *rate.Limiter) {
	type chunk struct {
		bytes []byte
		at    time.Time
	}
	queue := make(chan chunk, linkQueue)
	go func() {
		defer close(queue)
		for {
			b := make([]byte, linkChunk)
			n, err := from.Read(b)
			if n > 0 {
				queue <- chunk{b[:n], time.Now().Add(delay)}
			}
			if err != nil {
				return
			}
		}
	}()
	defer func() {
		_, _ = to.Close(), from.Close()
		for range queue { // the reader must not wait for ever
		}
	}()
	for c := range queue {
		time.Sleep(time.Until(c.at))
		if limiter.WaitN(l.ctx, len(c.bytes)) != nil {
			return
		}
		if _, err := to.Write(c.bytes); err != nil {
			return
		}
	}
}
