"""The other spelling of ``extract_embeddings.py`` that the walkthrough prints."""

from extract_embeddings import main

if __name__ == "__main__":
    main()
