package kopia

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/kopia/kopia/repo"
)

// writeConnection writes a connection file without caching, with ranges, and with windows if it is for reading.
//
// Caching options of size 0, as kopia writes them, are not enough. If $KOPIA_CACHE_DIRECTORY
// is set, for stock kopia beside this program, repo.LoadConfigFromFile adds its directory to
// any caching options. A cache with a directory and without a size has no storage
// (cache.NewStorageOrNil, cache.NewPersistentCache), and reading a blob through it
// dereferences nil (contentCacheImpl.fetchBlobInternal). Worse, repo.Connect with a wrong
// password removes that directory, which is not ours, with everything in it. If a file has no
// caching options, kopia ignores the variable.
func writeConnection(file string, c repo.LocalConfig) error {
	c.Caching = nil
	storage := *c.Storage
	if c.ReadOnly && storage.Type != rangedType {
		storage = *windowed(storage)
	}
	c.Storage = ranged(storage)
	return writeFile(file, c)
}

func writeFile(file string, c repo.LocalConfig) error {
	text, err := json.Marshal(c)
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write connection file: %w", err)
	}
	return nil
}
