package chaos

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// startStore starts an object store that says yes, and the proxy before it.
func startStore(t *testing.T) (p *storeProxy, address string, asked *atomic.Int64) {
	t.Helper()
	asked = &atomic.Int64{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, strings.Repeat(r.Host+"\n", 1000))
	}))
	t.Cleanup(server.Close)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address = listener.Addr().String()
	require.NoError(t, listener.Close())
	p, err = startStoreProxy(address, server.URL)
	require.NoError(t, err)
	t.Cleanup(p.stop)
	return p, address, asked
}

// ask sends a request on a connection of its own.
func ask(t *testing.T, method, address string) (status int, body string, err error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+"/bucket/key", strings.NewReader("content"))
	require.NoError(t, err)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}

func TestStoreProxy(t *testing.T) {
	p, address, asked := startStore(t)
	status, body, err := ask(t, http.MethodGet, address)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, strings.Repeat(address+"\n", 1000), body, "the signature covers the Host that the client has sent")

	p.mode.Store(&mode{share: 1, status: http.StatusInsufficientStorage, code: "XMinioStorageFull", writes: true})
	status, _, err = ask(t, http.MethodGet, address)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, "only what writes gets the error")
	status, body, err = ask(t, http.MethodPut, address)
	require.NoError(t, err)
	require.Equal(t, http.StatusInsufficientStorage, status)
	require.Contains(t, body, "<Code>XMinioStorageFull</Code>")

	p.mode.Store(&mode{share: 1, cut: true})
	before := asked.Load()
	const requests = 40
	for range requests {
		_, _, err = ask(t, http.MethodPut, address)
		require.Error(t, err)
	}
	require.Positive(t, asked.Load()-before, "some are cut after the object store has them")
	require.Less(t, asked.Load()-before, int64(requests), "and some before")

	p.mode.Store(nil)
	status, _, err = ask(t, http.MethodGet, address)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
}

func TestTunnel(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = server.Close() }()
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }()
		}
	}()
	tunnel, err := startTunnel("127.0.0.1:0", server.Addr().String())
	require.NoError(t, err)
	defer tunnel.stop()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", tunnel.listener.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	echo := func(c net.Conn, wait time.Duration) error {
		_, err := c.Write([]byte("x"))
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(wait)))
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	}
	c := dial()
	require.NoError(t, echo(c, time.Minute))
	tunnel.stall()
	require.Error(t, echo(c, 50*time.Millisecond))
	tunnel.heal()
	require.NoError(t, echo(c, time.Minute))
	tunnel.cut()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
	_, err = io.Copy(io.Discard, c)
	require.NoError(t, err, "the connection ends")
}
