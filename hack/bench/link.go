package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// line is a connection to an object store: how long a request and its answer are on the way, and how many bytes pass in a
// second, each way, all requests together. A new connection takes two ways there and back more, as one of TCP with TLS does. Of each
// cutEvery requests one is cut, if that is not 0.
type line struct {
	name     string
	rtt      time.Duration
	rate     int64
	cutEvery int64
}

// linkBurst is what may pass at once: what the buffers of a network card and a switch hold.
const linkBurst = 256 << 10

// link is a line in front of an object store: an HTTP proxy.
type link struct {
	line
	server   *http.Server
	address  string
	up, down *rate.Limiter
	// What has passed.
	requests, connections, sent, received atomic.Int64
}

// startLink makes a link to the object store at an address.
func startLink(l line, store string) (*link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for requests to the object store: %w", err)
	}
	limiter := func() *rate.Limiter { return rate.NewLimiter(rate.Limit(l.rate), linkBurst) }
	k := &link{line: l, address: listener.Addr().String(), up: limiter(), down: limiter()}
	to := &url.URL{Scheme: "http", Host: store}
	proxy := &httputil.ReverseProxy{
		// The signature of a request covers its Host, so that stays.
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host },
		Transport: &http.Transport{MaxIdleConnsPerHost: 1000, DisableCompression: true},
		ErrorLog:  log.New(io.Discard, "", 0), // clients leave when they have read what they want
		ModifyResponse: func(r *http.Response) error {
			r.Body = &pacedBody{ReadCloser: r.Body, ctx: r.Request.Context(), limiter: k.down, count: &k.received}
			return nil
		},
	}
	k.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := k.requests.Add(1)
		if k.cutEvery > 0 && n%k.cutEvery == 0 {
			panic(http.ErrAbortHandler)
		}
		time.Sleep(k.rtt)
		r.Body = &pacedBody{ReadCloser: r.Body, ctx: r.Context(), limiter: k.up, count: &k.sent}
		proxy.ServeHTTP(w, r)
	})}
	go func() { _ = k.server.Serve(slowListener{listener, k}) }()
	return k, nil
}

func (k *link) close() error { return k.server.Close() }

// slowListener is that of a link.
type slowListener struct {
	net.Listener
	link *link
}

// Accept implements net.Listener.
func (l slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	l.link.connections.Add(1)
	return &slowConn{Conn: c, handshake: handshakes * l.link.rtt}, err
}

// handshakes are the ways there and back until a connection of TCP with TLS 1.3 has its first request under way.
const handshakes = 2

// slowConn is a connection whose other side is far away.
type slowConn struct {
	net.Conn
	handshake time.Duration
}

// Read implements net.Conn. Only one goroutine reads.
func (c *slowConn) Read(p []byte) (int, error) {
	time.Sleep(c.handshake)
	c.handshake = 0
	return c.Conn.Read(p)
}

// takes returns how long the line alone needs for so many bytes.
func (l line) takes(bytes int64) time.Duration {
	return time.Duration(float64(bytes) / float64(l.rate) * float64(time.Second))
}

// pacedBody is a body that passes a limiter.
type pacedBody struct {
	io.ReadCloser
	ctx     context.Context //nolint:containedctx // io.Reader takes none
	limiter *rate.Limiter
	count   *atomic.Int64
}

// Read implements io.Reader.
func (b *pacedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), linkBurst/4)])
	b.count.Add(int64(n))
	if waitErr := b.limiter.WaitN(b.ctx, n); waitErr != nil {
		return n, errors.Join(waitErr, err)
	}
	return n, err
}
