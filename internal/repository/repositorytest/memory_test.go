package repositorytest_test

import (
	"testing"

	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/repositorytest"
)

func TestMemory(t *testing.T) {
	repositorytest.Contract(t, func(*testing.T) repository.Store { return repositorytest.NewMemory() })
}
