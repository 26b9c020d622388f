package kopia

import (
	"net/http"
	"sync"
)

// idleConnections is how many connections to an object store stay open while nothing needs them: as many as the restore of an image
// uses, and as many for the rest. On a link of 20 ms, a new one with TLS takes 40 ms before its first request.
const idleConnections = 2 * maxRequests

// keepConnections sets the transport that kopia's storages copy. Go's keeps two connections to a host, and closes the others
// as soon as they are idle.
var keepConnections = sync.OnceFunc(func() {
	if t, ok := http.DefaultTransport.(*http.Transport); ok {
		t.MaxIdleConnsPerHost = idleConnections
	}
})
