package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// mode is how the proxy of the object store behaves.
type mode struct {
	// share of the requests that are hit, from 0 to 1.
	share float64
	// status and code are the answer instead of that of the object store, if status is not 0.
	// writes is set if only requests that write get it.
	status int
	code   string
	writes bool
	// cut ends the connection: before the object store sees the request, after it has answered, or
	// within its answer.
	cut bool
	// delay comes before each request, and rate, in bytes per second, bounds what each request
	// moves. 0 is none.
	delay time.Duration
	rate  int
}

// storeProxy stands between Velero and the object store.
type storeProxy struct {
	handler *httputil.ReverseProxy
	server  *http.Server
	mode    atomic.Pointer[mode]
	hits    atomic.Int64
	mu      sync.Mutex
	random  *rand.Rand
}

type cutKey struct{}

// startStoreProxy listens at an address and hands on to the object store.
func startStoreProxy(address, target string) (*storeProxy, error) {
	to, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("parse address of the object store: %w", err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for requests to the object store: %w", err)
	}
	p := &storeProxy{random: rand.New(rand.NewPCG(1, 0))}
	p.handler = &httputil.ReverseProxy{
		// The signature of a request covers its Host, so that stays.
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host },
		ModifyResponse: func(r *http.Response) error {
			switch r.Request.Context().Value(cutKey{}) {
			case cutAfter:
				_ = r.Body.Close()
				return errCut
			case cutWithin:
				r.Body = &shortBody{ReadCloser: r.Body, left: max(1, r.ContentLength/2)}
			}
			return nil
		},
		ErrorLog: log.New(io.Discard, "", 0), // its errors are the faults
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if errors.Is(err, errCut) {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	go func() { _ = p.server.Serve(listener) }()
	return p, nil
}

// Where a connection is cut.
const (
	cutAfter = iota + 1
	cutWithin
)

var errCut = errors.New("cut by the proxy")

// shortBody ends within the answer.
type shortBody struct {
	io.ReadCloser
	left int64
}

func (b *shortBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errCut
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// slowBody reads at most rate bytes per second.
type slowBody struct {
	io.ReadCloser
	rate int
}

func (b *slowBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), b.rate/10)])
	time.Sleep(time.Duration(n) * time.Second / time.Duration(b.rate))
	return n, err
}

func (p *storeProxy) draw() (share float64, where int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.random.Float64(), p.random.IntN(3)
}

func (p *storeProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m := p.mode.Load()
	share, where := p.draw()
	writes := r.Method == http.MethodPut || r.Method == http.MethodPost
	if m == nil || share >= m.share || m.writes && !writes {
		p.handler.ServeHTTP(w, r)
		return
	}
	p.hits.Add(1)
	switch {
	case m.status != 0:
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(m.status)
		_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>made by the chaos test</Message></Error>`, m.code)
		return
	case m.cut && where == 0:
		panic(http.ErrAbortHandler)
	case m.cut:
		r = r.WithContext(context.WithValue(r.Context(), cutKey{}, where))
	}
	time.Sleep(m.delay)
	if m.rate > 0 && r.Body != nil {
		r.Body = &slowBody{ReadCloser: r.Body, rate: m.rate}
	}
	p.handler.ServeHTTP(w, r)
}

func (p *storeProxy) stop() { _ = p.server.Close() }

// tunnel hands on TCP connections to a metadata service.
type tunnel struct {
	listener net.Listener
	target   string
	mu       sync.Mutex
	open     map[net.Conn]bool
	refuse   bool
	hold     chan struct{} // not nil while nothing moves
}

func startTunnel(address, target string) (*tunnel, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for a metadata service: %w", err)
	}
	t := &tunnel{listener: listener, target: target, open: map[net.Conn]bool{}}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go t.serve(c)
		}
	}()
	return t, nil
}

func (t *tunnel) serve(client net.Conn) {
	defer func() { _ = client.Close() }()
	t.mu.Lock()
	refuse := t.refuse
	t.mu.Unlock()
	if refuse {
		return
	}
	server, err := net.DialTimeout("tcp", t.target, 10*time.Second)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	t.mu.Lock()
	t.open[client] = true
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.open, client)
		t.mu.Unlock()
	}()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		go func() {
			_, _ = io.Copy(way[1], &held{Conn: way[0], t: t})
			done <- struct{}{}
		}()
	}
	<-done
}

// held reads when the tunnel lets things move.
type held struct {
	net.Conn
	t *tunnel
}

func (h *held) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.t.mu.Lock()
	hold := h.t.hold
	h.t.mu.Unlock()
	if hold != nil {
		<-hold
	}
	return n, err
}

// cut ends all connections, and refuses new ones until heal.
func (t *tunnel) cut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refuse = true
	for c := range t.open {
		_ = c.Close()
	}
}

// stall lets nothing move until heal.
func (t *tunnel) stall() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hold == nil {
		t.hold = make(chan struct{})
	}
}

func (t *tunnel) heal() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refuse = false
	if t.hold != nil {
		close(t.hold)
		t.hold = nil
	}
}

func (t *tunnel) stop() {
	_ = t.listener.Close()
	t.heal()
	t.cut()
}

// port gives an address another port.
func port(address, number string) string {
	host, _, found := strings.Cut(address, ":")
	if !found {
		return address
	}
	return net.JoinHostPort(host, number)
}
